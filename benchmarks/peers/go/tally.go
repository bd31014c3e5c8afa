package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// A tally is how handlers tell that they ran; its files are described in tally.py.
type tally struct {
	jobs      atomic.Uint64
	firstNs   atomic.Int64
	folder    string
	latencies *os.File
	open      sync.Once
	stop      chan struct{}
	stopped   chan struct{}
}

// newTally writes the counter to its file whenever it has changed, every few milliseconds: cheaper for the handlers
// than to do it themselves.
func newTally() *tally {
	made := &tally{folder: os.Getenv("BENCH_TALLY"), stop: make(chan struct{}), stopped: make(chan struct{})}
	go made.keep()
	return made
}

func (t *tally) path(kind string) string {
	return filepath.Join(t.folder, fmt.Sprintf("%d.%s", os.Getpid(), kind))
}

func (t *tally) keep() {
	defer close(t.stopped)
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	written := uint64(0)
	for running := true; running; {
		select {
		case <-ticker.C:
		case <-t.stop:
			running = false
		}
		if jobs := t.jobs.Load(); jobs != written {
			var data [16]byte
			binary.LittleEndian.PutUint64(data[:8], jobs)
			binary.LittleEndian.PutUint64(data[8:], uint64(t.firstNs.Load()))
			if err := os.WriteFile(t.path("count"), data[:], 0o644); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
			written = jobs
		}
	}
}

func (t *tally) close() {
	close(t.stop)
	<-t.stopped
}

func (t *tally) count() {
	if t.firstNs.Load() == 0 {
		t.firstNs.CompareAndSwap(0, time.Now().UnixNano())
	}
	t.jobs.Add(1)
}

func (t *tally) since(sentNs int64) error {
	latencyNs := time.Now().UnixNano() - sentNs
	var failed error
	t.open.Do(func() {
		t.latencies, failed = os.OpenFile(t.path("latency"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	})
	if failed != nil {
		return failed
	}
	var data [8]byte
	binary.LittleEndian.PutUint64(data[:], uint64(latencyNs))
	if _, err := t.latencies.Write(data[:]); err != nil {
		return err
	}
	t.count()
	return nil
}

// A flaky handler fails every tenth job the first time that it runs.
func failsAt(number, attempt int) bool { return number%10 == 0 && attempt == 1 }
