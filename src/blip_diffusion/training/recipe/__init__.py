"""The recipe of `mini`: all phases of its training within one time limit, from one pool of composed pairs."""
