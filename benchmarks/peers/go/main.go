// Command peers runs River and asynq for the benchmarks: one program, one system and one task a call.
//
//	peers river|asynq version
//	peers river|asynq migrate                          make what the system needs in its store
//	peers river|asynq bulk JOBS KIND                   enqueue as fast as it goes
//	peers river|asynq one SECONDS IN_FLIGHT            enqueue one by one
//	peers river|asynq pace PER_SECOND SECONDS LANES    enqueue at a rate
//	peers river|asynq work                             run handlers until SIGTERM
//
// The store's address is in BENCH_URL, the folder in which handlers count in BENCH_TALLY. What was measured is
// printed as one JSON object.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"syscall"
)

// A system is a job queue that is benchmarked.
type system interface {
	migrate(ctx context.Context) error
	// bulk enqueues jobs of a kind, numbered from 0.
	bulk(ctx context.Context, jobs int, kind string) error
	// send enqueues one job; sentNs is for the kind "since".
	send(ctx context.Context, kind string, sentNs int64) error
	// work runs handlers until the context ends.
	work(ctx context.Context, concurrency int) error
	module() string
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) < 2 {
		return fmt.Errorf("usage: peers river|asynq TASK ...")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	makers := map[string]func(context.Context) (system, error){"river": newRiver, "asynq": newAsynq}
	maker, known := makers[arguments[0]]
	if !known {
		return fmt.Errorf("no system %q", arguments[0])
	}
	made, err := maker(ctx)
	if err != nil {
		return err
	}
	found, err := perform(ctx, made, arguments[1], arguments[2:])
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(found)
}

func perform(ctx context.Context, made system, task string, rest []string) (any, error) {
	numbers := make([]float64, 0, len(rest))
	for _, text := range rest {
		number, _ := strconv.ParseFloat(text, 64) // a kind is no number, and is read from rest
		numbers = append(numbers, number)
	}
	switch {
	case task == "version":
		return map[string]string{"version": moduleVersion(made.module())}, nil
	case task == "migrate":
		return nil, made.migrate(ctx)
	case task == "work" && len(numbers) == 1:
		return nil, made.work(ctx, int(numbers[0]))
	case task == "bulk" && len(numbers) == 2:
		return enqueueBulk(ctx, made, int(numbers[0]), rest[1])
	case task == "one" && len(numbers) == 2:
		return enqueueOneByOne(ctx, made, numbers[0], int(numbers[1]))
	case task == "pace" && len(numbers) == 3:
		return enqueueAtPace(ctx, made, numbers[0], numbers[1], int(numbers[2]))
	}
	return nil, fmt.Errorf("no task %q with %d arguments", task, len(rest))
}

func moduleVersion(path string) string {
	info, _ := debug.ReadBuildInfo()
	for _, module := range info.Deps {
		if module.Path == path {
			return module.Version
		}
	}
	return "unknown"
}

func url() string { return os.Getenv("BENCH_URL") }
