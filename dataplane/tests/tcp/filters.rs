//! Network filters before the TCP proxy.
