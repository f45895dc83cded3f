"""What the proxy tells about itself: logs, the access log, metrics, readiness and the admin server.

Reading order: ``lines`` (how a log line is written), ``writer`` (the thread that writes them), ``levels`` and
``logging`` (levels per scope, structlog set-up), ``access_log`` (one line per connection), ``labels`` and
``metrics`` (Istio's metrics), ``readiness``, ``dump`` (the mesh as JSON), ``admin`` (the three web
applications), ``server`` (their thread). Nothing here blocks the event loop that carries packets: it counts
plain integers and hands lines to the writer thread.
"""
