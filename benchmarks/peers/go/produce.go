package main

import (
	"context"
	"sort"
	"sync"
	"time"
)

// warmUp is not counted: connections are made, and caches filled.
const warmUp = time.Second

func enqueueBulk(ctx context.Context, made system, jobs int, kind string) (any, error) {
	began := time.Now()
	err := made.bulk(ctx, jobs, kind)
	return map[string]any{"jobs": jobs, "seconds": time.Since(began).Seconds()}, err
}

// enqueueOneByOne has so many callers each send one job after the other.
func enqueueOneByOne(ctx context.Context, made system, seconds float64, inFlight int) (any, error) {
	begin := time.Now().Add(warmUp)
	end := begin.Add(time.Duration(seconds * float64(time.Second)))
	sent := 0
	times, err := inLanes(inFlight, func(int) ([]float64, error) {
		var mine []float64
		for started := time.Now(); started.Before(end); started = time.Now() {
			if err := made.send(ctx, "noop", 0); err != nil {
				return mine, err
			}
			took := time.Since(started)
			if started.Before(begin) {
				took = -1
			}
			mine = append(mine, float64(took)/float64(time.Millisecond))
		}
		return mine, nil
	})
	sent = len(times)
	counted := times[sort.SearchFloat64s(times, 0):]
	found := map[string]any{
		"sent":   sent,
		"jobs":   len(counted),
		"per_s":  float64(len(counted)) / seconds,
		"p50_ms": percentile(counted, 0.50),
		"p95_ms": percentile(counted, 0.95),
		"p99_ms": percentile(counted, 0.99),
	}
	return found, err
}

// enqueueAtPace sends "since" jobs on a schedule shared by some lanes; a lane that is late sends at once.
func enqueueAtPace(ctx context.Context, made system, perSecond, seconds float64, lanes int) (any, error) {
	began := time.Now()
	end := began.Add(time.Duration(seconds * float64(time.Second)))
	step := time.Duration(float64(lanes) / perSecond * float64(time.Second))
	times, err := inLanes(lanes, func(lane int) ([]float64, error) {
		var mine []float64
		due := began.Add(step * time.Duration(lane) / time.Duration(lanes))
		for ; due.Before(end); due = due.Add(step) {
			time.Sleep(time.Until(due))
			if time.Now().After(end) {
				break
			}
			if err := made.send(ctx, "since", time.Now().UnixNano()); err != nil {
				return mine, err
			}
			mine = append(mine, 0)
		}
		return mine, nil
	})
	return map[string]any{"jobs": len(times), "seconds": time.Since(began).Seconds()}, err
}

// inLanes runs a function so many times at once; all that they return, sorted, and the first error.
func inLanes(lanes int, run func(lane int) ([]float64, error)) ([]float64, error) {
	var (
		all   []float64
		first error
		lock  sync.Mutex
		group sync.WaitGroup
	)
	for lane := range lanes {
		group.Add(1)
		go func() {
			defer group.Done()
			mine, err := run(lane)
			lock.Lock()
			defer lock.Unlock()
			all = append(all, mine...)
			if first == nil {
				first = err
			}
		}()
	}
	group.Wait()
	sort.Float64s(all)
	return all, first
}

func percentile(sorted []float64, share float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(share*float64(len(sorted))))]
}
