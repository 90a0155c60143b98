// SPDX-License-Identifier: MIT
// Server-sent events that come back by themselves.

const AGAIN = 2000;

/**
 * Follow a path while the page can be seen: a browser has few connections to a server, and a hidden tab needs none.
 * `events` maps names to functions of the value; `opened` and `lost` tell of the connection.
 */
export function follow(path, { events, opened = () => {}, lost = () => {} }) {
  let stream = null;
  let timer = null;

  function connect() {
    clearTimeout(timer);
    stream?.close();
    const mine = new EventSource(path);
    stream = mine;
    mine.onopen = opened;
    for (const [name, tell] of Object.entries(events)) {
      mine.addEventListener(name, (event) => tell(JSON.parse(event.data)));
    }
    mine.onerror = () => {
      lost();
      // A stream that was refused does not try again by itself.
      if (mine.readyState === EventSource.CLOSED && mine === stream) timer = setTimeout(connect, AGAIN);
    };
  }

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) connect();
    else {
      clearTimeout(timer);
      stream.close();
    }
  });
  connect();
}
