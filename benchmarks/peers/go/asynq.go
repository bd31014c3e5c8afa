package main

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/hibiken/asynq"
)

// asynqLanes is how many callers share a bulk enqueue: asynq has no call for many jobs.
const asynqLanes = 32

// asynqConnections is more than callers in flight; unless told it would be ten for each core.
const asynqConnections = 64

type asynqSystem struct {
	options asynq.RedisConnOpt
	client  *asynq.Client
}

func newAsynq(context.Context) (system, error) {
	address := url()
	if address == "" {
		return &asynqSystem{}, nil // enough to tell the version
	}
	parsed, err := asynq.ParseRedisURI(address)
	if err != nil {
		return nil, err
	}
	options, plain := parsed.(asynq.RedisClientOpt)
	if !plain {
		return nil, errors.New("not the address of a single Redis")
	}
	options.PoolSize = asynqConnections
	return &asynqSystem{options, asynq.NewClient(options)}, nil
}

func (a *asynqSystem) module() string { return "github.com/hibiken/asynq" }

func (a *asynqSystem) migrate(context.Context) error { return nil }

func asynqPayload(kind string, number int, sentNs int64) []byte {
	switch kind {
	case "payload":
		return []byte(`{"text":"` + strings.Repeat("x", 10_000) + `"}`)
	case "flaky":
		return encoded(flakyArgs{number})
	case "since":
		return encoded(sinceArgs{sentNs})
	}
	return nil
}

func encoded(value any) []byte {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err) // structs of numbers
	}
	return data
}

func (a *asynqSystem) bulk(ctx context.Context, jobs int, kind string) error {
	var group sync.WaitGroup
	failures := make(chan error, asynqLanes)
	for lane := range asynqLanes {
		group.Add(1)
		go func() {
			defer group.Done()
			for number := lane; number < jobs; number += asynqLanes {
				if _, err := a.client.EnqueueContext(ctx, asynq.NewTask(kind, asynqPayload(kind, number, 0))); err != nil {
					failures <- err
					return
				}
			}
		}()
	}
	group.Wait()
	close(failures)
	return <-failures
}

func (a *asynqSystem) send(ctx context.Context, kind string, sentNs int64) error {
	_, err := a.client.EnqueueContext(ctx, asynq.NewTask(kind, asynqPayload(kind, 0, sentNs)))
	return err
}

func (a *asynqSystem) work(ctx context.Context, concurrency int) error {
	counted := newTally()
	handlers := asynq.NewServeMux()
	count := func(context.Context, *asynq.Task) error {
		counted.count()
		return nil
	}
	handlers.HandleFunc("noop", count)
	handlers.HandleFunc("payload", count)
	handlers.HandleFunc("flaky", func(ctx context.Context, task *asynq.Task) error {
		var args flakyArgs
		if err := json.Unmarshal(task.Payload(), &args); err != nil {
			return err
		}
		counted.count()
		retried, _ := asynq.GetRetryCount(ctx)
		if failsAt(args.Number, retried+1) {
			return errors.New("fails once")
		}
		return nil
	})
	handlers.HandleFunc("since", func(_ context.Context, task *asynq.Task) error {
		var args sinceArgs
		if err := json.Unmarshal(task.Payload(), &args); err != nil {
			return err
		}
		return counted.since(args.SentNs)
	})
	server := asynq.NewServer(a.options, asynq.Config{
		Concurrency: concurrency,
		LogLevel:    asynq.FatalLevel,
		// As soon as asynq can: others back off for as little as they allow, too.
		RetryDelayFunc:           func(int, error, *asynq.Task) time.Duration { return 0 },
		DelayedTaskCheckInterval: time.Second,
		TaskCheckInterval:        asynqCheckInterval,
	})
	if err := server.Start(handlers); err != nil {
		return err
	}
	<-ctx.Done()
	server.Shutdown()
	counted.close()
	return nil
}

// asynqCheckInterval is how long an idle worker sleeps before it looks again; a second unless told.
const asynqCheckInterval = 5 * time.Millisecond
