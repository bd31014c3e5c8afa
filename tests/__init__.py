"""The test suite; helpers that several tests share are modules of this package."""
