//! The control origin from the outside.
