"""An app whose tasks behave in odd ways."""
