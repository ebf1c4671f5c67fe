"""One file a decoding backend; `ndavid.data.decode` is the door to them."""
