//! Finding the end of a head.
