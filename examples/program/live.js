// SPDX-License-Identifier: MIT
// Sends the events of the shop to every open page. The companion manager passes it two sockets.
"use strict";

const http = require("http");

// sd_listen_fds(3): the sockets begin at descriptor 3, if LISTEN_PID is this process.
const given = Number(process.env.LISTEN_PID) === process.pid ? Number(process.env.LISTEN_FDS) : 0;
if (given !== 2) {
  console.error("live: start me as a companion, or with systemd, with two sockets");
  process.exit(1);
}

const pages = new Set();

// For browsers: a stream of server-sent events.
const outside = http.createServer((request, response) => {
  response.writeHead(200, {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "Access-Control-Allow-Origin": "*",
    // A kept connection would delay the stop after the stream's end.
    "Connection": "close",
  });
  response.write(`retry: 500\nevent: hello\ndata: ${process.pid}\n\n`);
  pages.add(response);
  response.on("close", () => pages.delete(response));
});

// For the shop: each POST is an event.
const inside = http.createServer((request, response) => {
  let text = "";
  request.setEncoding("utf8");
  request.on("data", (chunk) => { text += chunk; });
  request.on("end", () => {
    for (const page of pages) page.write(`data: ${JSON.stringify(JSON.parse(text))}\n\n`);
    response.end(JSON.stringify({pid: process.pid, pages: pages.size}));
  });
});

outside.listen({fd: 3});
inside.listen({fd: 4});

// Finish the requests that have begun. The pages connect again, and wait until the next process accepts them.
process.on("SIGTERM", () => {
  for (const server of [outside, inside]) server.close();
  for (const page of pages) page.end();
  inside.closeIdleConnections();
});
