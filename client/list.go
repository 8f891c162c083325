package client

import (
	"context"
	"iter"
	"net/http"
	"strconv"
)

// List yields the pairs of a range in the order of their keys, as of one revision.
// It fetches a page at a time. After an error it ends.
func (c *Client) List(ctx context.Context, keys Range, options ...ReadOption) iter.Seq2[*KV, error] {
	return func(yield func(*KV, error) bool) {
		cursor := ""
		for {
			page, err := c.page(ctx, keys, cursor, options)
			if err != nil {
				yield(nil, err)
				return
			}
			for i := range page.KVs {
				kv, err := page.KVs[i].kv()
				if !yield(kv, err) || err != nil {
					return
				}
			}
			if cursor = page.Next; cursor == "" {
				return
			}
		}
	}
}

// page is one answer to a list.
type page struct {
	Revision uint64   `json:"revision"`
	Count    uint64   `json:"count"`
	KVs      []wireKV `json:"kvs"`
	Next     string   `json:"next"`
}

func (c *sender) page(ctx context.Context, keys Range, cursor string, options []ReadOption) (*page, error) {
	r := newRequest(http.MethodGet, "/v1/kv")
	keys.set(r.query)
	for _, o := range options {
		o(r)
	}
	if cursor != "" {
		r.query.Set("cursor", cursor)
	}
	var out page
	if _, err := c.call(ctx, r, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Limit bounds the number of pairs of one page of a list.
func Limit(n int) ReadOption {
	return func(r *request) { r.query.Set("limit", strconv.Itoa(n)) }
}

// Reverse lists from the greatest key down.
func Reverse() ReadOption {
	return func(r *request) { r.query.Set("reverse", "") }
}

// KeysOnly leaves the values out.
func KeysOnly() ReadOption {
	return func(r *request) { r.query.Set("keys_only", "") }
}

// Count returns the number of keys in a range.
func (c *Client) Count(ctx context.Context, keys Range, options ...ReadOption) (uint64, error) {
	options = append(options, func(r *request) { r.query.Set("count_only", "") })
	p, err := c.page(ctx, keys, "", options)
	if err != nil {
		return 0, err
	}
	return p.Count, nil
}
