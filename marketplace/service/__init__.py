"""What is served: the routes of the API and what a service of published generations needs around them."""
