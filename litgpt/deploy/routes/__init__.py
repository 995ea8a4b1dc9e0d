"""One file a route, over the one service."""
