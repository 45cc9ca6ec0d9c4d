//! The transport against a control plane that a test writes line by line, over real connections.

mod delta;
mod rest;
mod sotw;
mod support;
