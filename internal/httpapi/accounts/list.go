package accounts

import (
	"encoding/base64"
	"net/http"
	"slices"

	"github.com/kvd-io/kvd/internal/rights"
)

// page returns a page of entries in order. appendEntry encodes one, and size estimates its
// length in bytes.
func (r *Request) page(t *rights.Tables, list string, names []string, size func(name string) int, appendEntry func(doc []byte, name string) []byte) (*Answer, error) {
	limit, ok, err := r.Query.Number("limit", 1)
	switch {
	case err != nil:
		return nil, err
	case !ok:
		limit = maxPage
	case limit > maxPage:
		return nil, badRequest("the parameter \"limit\" is at most %d here; follow \"next\" for more", maxPage)
	}
	if text, ok := r.Query.Get("cursor"); ok {
		from, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil || len(from) == 0 {
			return nil, badRequest("invalid parameter \"cursor\"; it must be the \"next\" of an earlier response")
		}
		at, _ := slices.BinarySearch(names, string(from))
		names = names[at:]
	}
	n, bytes := 0, 0
	for n < len(names) && n < int(limit) && bytes < pageBytes {
		bytes += size(names[n])
		n++
	}
	if err := r.Memory.Wait(r.Context, r.Memory.Bytes()+int64(bytes)); err != nil {
		return nil, err
	}
	doc := append(append(make([]byte, 0, bytes+64), `{"`...), list...)
	doc = append(doc, `":[`...)
	for i, name := range names[:n] {
		if i > 0 {
			doc = append(doc, ',')
		}
		doc = appendEntry(doc, name)
	}
	doc = append(doc, ']')
	if n < len(names) {
		doc = append(doc, `,"next":"`...)
		doc = append(base64.RawURLEncoding.AppendEncode(doc, []byte(names[n])), '"')
	}
	return &Answer{Status: http.StatusOK, Document: append(doc, '}', '\n'), Revision: t.Revision()}, nil
}

// found returns the answer with one entry.
func found(t *rights.Tables, doc []byte) *Answer {
	return &Answer{Status: http.StatusOK, Document: append(doc, '\n'), Revision: t.Revision()}
}

// entryBytes bounds the JSON of an entry without its names and labels.
const entryBytes = 256

// stretched is the maximum length of a byte in JSON, as in \u0001.
const stretched = 6
