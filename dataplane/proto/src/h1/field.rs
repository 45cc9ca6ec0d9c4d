//! Field values: lists of tokens, lengths, codings.
