// A query of an address or a request: what is empty is left out.

export function queryString(values) {
  return new URLSearchParams(Object.entries(values).filter(([, value]) => value)).toString();
}
