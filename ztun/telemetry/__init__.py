"""What the proxy tells about itself: logs, the access log, metrics, readiness and the admin server.

Reading order: ``lines`` (how a log line is written), ``writer`` (the thread that writes them), ``levels`` and
``logging`` (levels per scope, structlog), ``access_log`` (one line per connection), ``labels``, ``traffic``,
``families`` and ``metrics`` (what a scrape shows), ``readiness``, ``dump`` and ``config_dump`` (the state as
JSON), ``tasks`` (what the event loop is doing), ``admin`` (the three web applications), ``server`` (their thread).
Nothing here blocks the event loop that carries packets: it counts plain integers and hands lines to the writer thread.
"""
