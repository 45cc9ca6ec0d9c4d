//! What every room of the request path reports to: counters, gauges, histograms and access logs.
//!
//! Workers write, the control thread reads. Nothing here makes a worker wait: statistics are single-writer atomics, log
//! lines travel through a bounded lock-free queue, and both are collected by the control thread at its own pace.

pub mod access;
pub mod access_log;
pub mod codes;
pub mod help;
pub mod histogram;
pub mod names;
pub mod pipe;
pub mod prometheus;
pub mod registry;
pub mod render;
pub mod sets;
pub mod stats;
pub mod trace;
pub mod view;
