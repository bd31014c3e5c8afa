package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/riverqueue/river/rivertype"
)

const (
	// riverBatch is how many jobs one COPY inserts.
	riverBatch = 10_000
	// riverConnections is more than callers in flight, and than the few that a working client uses.
	riverConnections = "40"
)

type noopArgs struct{}

func (noopArgs) Kind() string { return "noop" }

type payloadArgs struct {
	Text string `json:"text"`
}

func (payloadArgs) Kind() string { return "payload" }

type flakyArgs struct {
	Number int `json:"number"`
}

func (flakyArgs) Kind() string { return "flaky" }

type sinceArgs struct {
	SentNs int64 `json:"sent_ns"`
}

func (sinceArgs) Kind() string { return "since" }

var payloadText = strings.Repeat("x", 10_000)

func riverArgs(kind string, number int, sentNs int64) river.JobArgs {
	switch kind {
	case "payload":
		return payloadArgs{payloadText}
	case "flaky":
		return flakyArgs{number}
	case "since":
		return sinceArgs{sentNs}
	}
	return noopArgs{}
}

type riverSystem struct {
	pool   *pgxpool.Pool
	driver *riverpgxv5.Driver
	insert *river.Client[pgx.Tx]
}

func newRiver(ctx context.Context) (system, error) {
	address := url()
	if address == "" {
		return &riverSystem{}, nil // enough to tell the version
	}
	pool, err := pgxpool.New(ctx, address+"&pool_max_conns="+riverConnections)
	if err != nil {
		return nil, err
	}
	driver := riverpgxv5.New(pool)
	insert, err := river.NewClient(driver, &river.Config{Logger: riverLogger()})
	return &riverSystem{pool, driver, insert}, err
}

func riverLogger() *slog.Logger {
	// A failed attempt is logged as an error with its stack; here failures are what is measured.
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError + 1}))
}

func (r *riverSystem) module() string { return "github.com/riverqueue/river" }

func (r *riverSystem) migrate(ctx context.Context) error {
	migrator, err := rivermigrate.New(r.driver, &rivermigrate.Config{Logger: riverLogger()})
	if err != nil {
		return err
	}
	_, err = migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
	return err
}

func (r *riverSystem) bulk(ctx context.Context, jobs int, kind string) error {
	for first := 0; first < jobs; first += riverBatch {
		size := min(riverBatch, jobs-first)
		batch := make([]river.InsertManyParams, size)
		for index := range batch {
			batch[index] = river.InsertManyParams{Args: riverArgs(kind, first+index, 0)}
		}
		if _, err := r.insert.InsertManyFast(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

func (r *riverSystem) send(ctx context.Context, kind string, sentNs int64) error {
	_, err := r.insert.Insert(ctx, riverArgs(kind, 0, sentNs), nil)
	return err
}

// retryAtOnce has a failed job run again as soon as River can: others back off for as little as they allow, too.
type retryAtOnce struct{}

func (retryAtOnce) NextRetry(*rivertype.JobRow) time.Time { return time.Now() }

func (r *riverSystem) work(ctx context.Context, concurrency int) error {
	counted := newTally()
	workers := river.NewWorkers()
	river.AddWorker(workers, river.WorkFunc(func(context.Context, *river.Job[noopArgs]) error {
		counted.count()
		return nil
	}))
	river.AddWorker(workers, river.WorkFunc(func(context.Context, *river.Job[payloadArgs]) error {
		counted.count()
		return nil
	}))
	river.AddWorker(workers, river.WorkFunc(func(_ context.Context, job *river.Job[flakyArgs]) error {
		counted.count()
		if failsAt(job.Args.Number, job.Attempt) {
			return errors.New("fails once")
		}
		return nil
	}))
	river.AddWorker(workers, river.WorkFunc(func(_ context.Context, job *river.Job[sinceArgs]) error {
		return counted.since(job.Args.SentNs)
	}))
	client, err := river.NewClient(r.driver, &river.Config{
		Queues:            map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: concurrency}},
		Workers:           workers,
		FetchCooldown:     riverCooldown(),
		FetchPollInterval: 100 * time.Millisecond,
		JobTimeout:        -1,
		RetryPolicy:       retryAtOnce{},
		Logger:            riverLogger(),
	})
	if err != nil {
		return err
	}
	if err := client.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	<-ctx.Done()
	err = client.Stop(context.WithoutCancel(ctx))
	counted.close()
	return err
}

func riverCooldown() time.Duration { return 2 * time.Millisecond }
