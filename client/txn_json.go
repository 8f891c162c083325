package client

import (
	"context"
	"encoding/json"
	"net/http"
)

// TxnJSON executes a transaction in the form of POST /v1/txn, and returns its result in
// that form. It is for programs that were given a transaction as a document; others use
// Txn. The node refuses a malformed document with ErrBadRequest and the place of the
// mistake.
func (c *Client) TxnJSON(ctx context.Context, doc []byte) (json.RawMessage, error) {
	r := change(http.MethodPost, "/v1/txn", doc)
	r.header.Set("Content-Type", "application/json")
	var out json.RawMessage
	if _, err := c.call(ctx, r, &out); err != nil {
		return nil, err
	}
	return out, nil
}
