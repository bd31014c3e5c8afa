"""HTTP: resources, the gateway for workers, streams, health."""
