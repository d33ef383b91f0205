"""`litellm.Router` over the first rows of the file. Prints the seconds it took.

python litellm_router.py SOURCE URL CONCURRENCY ROWS
"""

import asyncio
import json
import sys
import time

import litellm


async def main(source: str, url: str, concurrency: int, rows: int) -> None:
    parameters = {"model": "openai/m", "api_base": f"{url}/v1", "api_key": "x"}
    router = litellm.Router(model_list=[{"model_name": "m", "litellm_params": parameters}])
    with open(source) as file:
        bodies = iter([json.loads(line)["body"] for line, _ in zip(file, range(rows), strict=False)])

    async def work() -> None:
        for body in bodies:
            await router.acompletion(model="m", messages=body["messages"], max_tokens=16)

    await asyncio.gather(*(work() for _ in range(concurrency)))


if __name__ == "__main__":
    start = time.perf_counter()
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    print(time.perf_counter() - start)
