"""The streaming interface for programs: a WebSocket that speaks the events of the Realtime API (demo/README.md)."""
