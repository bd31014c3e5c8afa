"""The product from outside: real processes, a real broker, the commands and addresses that people use."""
