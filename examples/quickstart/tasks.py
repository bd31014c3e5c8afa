"""A handler file: `penstock dev --app tasks.py` runs it."""

from penstock import task


@task
async def hello(name: str) -> str:
    return f"Hello, {name}!"
