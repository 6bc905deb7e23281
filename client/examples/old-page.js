// A page as it was written for the server without a database, with socket.io-client 2.x, 3.x or 4.x: nothing needs to change.
// `io` is the global of the script at /socket.io/socket.io.js, or what the page had before.

export function listen(io, url, user, show) {
  const socket = io(url);
  socket.on("connect", () => socket.emit("user_login", { tokenId: user, userId: user, socketId: socket.id }));
  socket.on("receive_message", (message) => show(message));
  return socket;
}

/** The same with one line more: what this device has does not come again at its next login. */
export function listenAndAck(io, url, user, show) {
  const socket = listen(io, url, user, show);
  socket.on("receive_message", (message) => socket.emit("ack", message.id));
  return socket;
}
