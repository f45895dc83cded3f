"""The waypoint: tunnels in, an engine's decision, tunnels out.

Reading order: ``instance`` (which pod this process is), ``target`` (what a connection asks for, and whether this
waypoint serves it, pure), ``policies`` (who may, pure), ``forwarding`` (one connection from its arrival to its server
end), ``requests`` (connections that come in tunnels), ``sandwich`` (connections that come behind a PROXY protocol
header), ``pod`` (the listeners), ``role`` (what the runtime drives), ``process``.
"""
