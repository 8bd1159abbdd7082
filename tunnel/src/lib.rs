//! IP-in-IP encapsulation.
