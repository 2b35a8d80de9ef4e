"""The query service: lists, clicks and items over HTTP, and the page that shows freshness."""
