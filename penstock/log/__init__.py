"""The log port, and the logs behind it: memory, embedded, Kafka."""
