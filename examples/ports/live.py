# SPDX-License-Identifier: MIT
"""A small server that keeps its clients for long, as one for WebSockets does: a line each second."""

import asyncio
import os
import signal
import socket
import sys


async def main() -> None:
    listener = socket.socket(fileno=3)
    greeting = f"{os.environ['GREETING']} {sys.argv[1]} on port {listener.getsockname()[1]}\n"
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n")
            writer.write(greeting.encode())
            for number in range(60):
                writer.write(b"%d\n" % number)
                await writer.drain()
                if ended.is_set():
                    break
                await asyncio.sleep(1)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, sock=listener)
    print(greeting, end="", flush=True)
    await ended.wait()
    server.close()


asyncio.run(main())
