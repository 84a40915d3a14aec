"""Reports as HTML: one page each that holds everything it shows."""
