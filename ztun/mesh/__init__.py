"""What is in the mesh, as immutable values, and the pure decisions made from them.

Reading order: ``model`` (workloads, services, policies), ``snapshot`` (one state of the mesh with its indices),
``balance`` (choice of an endpoint), ``lookup`` (where an outbound connection goes), ``authorization`` (whether an
inbound connection may be), ``baggage`` (what a tunnel says about its source). Nothing here opens a socket, reads a
clock or draws a random number of its own.
"""
