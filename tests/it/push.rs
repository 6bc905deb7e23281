//! Pushing over HTTP: what is accepted and stored, what is refused and how, idempotency, and more than the writer takes.

mod accepted;
mod bodies;
mod idempotency;
mod options;
mod overload;
mod refused;
