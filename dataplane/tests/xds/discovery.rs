//! The other discovery services: SRDS, VHDS, ECDS, RTDS.
