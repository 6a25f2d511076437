"""The job service under the HTTP server and the web page: durable jobs, and worker processes that generate."""
