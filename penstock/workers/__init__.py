"""Running handlers: `@task`, the runtime, transports."""
