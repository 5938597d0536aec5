"""An HTTP server before an engine, which the clients of OpenAI's image API understand."""
