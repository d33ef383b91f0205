"""A bare aiohttp loop: reads the file, calls, writes the answers. Prints the seconds it took.

python bare_loop.py SOURCE OUT URL CONCURRENCY
"""

import asyncio
import sys
import time

import aiohttp
import msgspec

HEADERS = {"Content-Type": "application/json"}


async def main(source: str, out: str, url: str, concurrency: int) -> None:
    with open(source, "rb") as lines, open(out, "wb") as sink:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as session:

            async def work() -> None:
                for line in lines:
                    row = msgspec.json.decode(line)
                    body = row["body"]
                    body["model"] = "m"
                    data = msgspec.json.encode(body)
                    async with session.post(f"{url}/v1/chat/completions", data=data, headers=HEADERS) as response:
                        answer = msgspec.json.decode(await response.read())
                    sink.write(
                        msgspec.json.encode({"custom_id": row["custom_id"], "response": {"body": answer}}) + b"\n"
                    )

            await asyncio.gather(*(work() for _ in range(concurrency)))


if __name__ == "__main__":
    start = time.perf_counter()
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
    print(time.perf_counter() - start)
