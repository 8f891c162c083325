package accounts

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/kvd-io/kvd/internal/httpapi/reply"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
)

// permissionDocument is a permission for a key, a prefix, or a range from start to end, each
// as text or in base64.
type permissionDocument struct {
	Access       *accessWord  `json:"access"`
	Space        spaceWord    `json:"space"`
	Key          *string      `json:"key"`
	KeyBase64    *base64Bytes `json:"key_base64"`
	Prefix       *string      `json:"prefix"`
	PrefixBase64 *base64Bytes `json:"prefix_base64"`
	Start        *string      `json:"start"`
	StartBase64  *base64Bytes `json:"start_base64"`
	End          *string      `json:"end"`
	EndBase64    *base64Bytes `json:"end_base64"`
}

// base64Bytes is a byte string in base64.
type base64Bytes []byte

// UnmarshalJSON implements json.Unmarshaler.
func (b *base64Bytes) UnmarshalJSON(text []byte) error {
	var s string
	if json.Unmarshal(text, &s) != nil {
		return fmt.Errorf("expected a string in base64, found %.40s", text)
	}
	decoded, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return fmt.Errorf("%.40q is not base64 with padding (RFC 4648, section 4)", s)
	}
	*b = decoded
	return nil
}

// accessWord is read, write, or readwrite.
type accessWord rights.Access

// UnmarshalJSON implements json.Unmarshaler.
func (a *accessWord) UnmarshalJSON(text []byte) error {
	for _, known := range []rights.Access{rights.Read, rights.Write, rights.ReadWrite} {
		if string(text) == `"`+known.String()+`"` {
			*a = accessWord(known)
			return nil
		}
	}
	return fmt.Errorf("expected \"read\", \"write\", or \"readwrite\", found %.40s", text)
}

// spaceWord is keys or locks.
type spaceWord rights.Space

// UnmarshalJSON implements json.Unmarshaler.
func (s *spaceWord) UnmarshalJSON(text []byte) error {
	switch string(text) {
	case `"keys"`:
		*s = spaceWord(rights.Keys)
	case `"locks"`:
		*s = spaceWord(rights.Locks)
	default:
		return fmt.Errorf("expected \"keys\" or \"locks\", found %.40s", text)
	}
	return nil
}

// either returns a byte string that is given in at most one of two forms.
func either(text *string, encoded *base64Bytes) ([]byte, error) {
	switch {
	case text != nil && encoded != nil:
		return nil, errors.New("a byte string is given as text and in base64; give one of them")
	case text != nil:
		return []byte(*text), nil
	case encoded != nil:
		return append([]byte{}, *encoded...), nil
	}
	return nil, nil
}

var errSelection = errors.New("expected one of key, prefix, or start and end; an empty prefix means everything")

// permission returns the permission in the document.
func (d *permissionDocument) permission() (p rights.Permission, err error) {
	if d.Access == nil {
		return p, errors.New("the field \"access\" is missing; it is read, write, or readwrite")
	}
	p = rights.Permission{Access: rights.Access(*d.Access), Space: rights.Space(d.Space)}
	p.Key, p.RangeEnd, err = d.names()
	return p, err
}

// names returns the range of the permission.
func (d *permissionDocument) names() (key, end []byte, err error) {
	var parts [4][]byte
	for i, part := range []struct {
		text    *string
		encoded *base64Bytes
	}{{d.Key, d.KeyBase64}, {d.Prefix, d.PrefixBase64}, {d.Start, d.StartBase64}, {d.End, d.EndBase64}} {
		if parts[i], err = either(part.text, part.encoded); err != nil {
			return nil, nil, err
		}
		if len(parts[i]) > kvstore.MaxKeyBytes {
			return nil, nil, fmt.Errorf("it has %d bytes, but the limit is %d, as for keys", len(parts[i]), kvstore.MaxKeyBytes)
		}
	}
	single, prefix, start, last := parts[0], parts[1], parts[2], parts[3]
	switch {
	case single != nil && prefix == nil && start == nil && last == nil:
		if len(single) == 0 {
			return nil, nil, errors.New("the key is empty; an empty prefix means everything")
		}
		return single, nil, nil
	case prefix != nil && single == nil && start == nil && last == nil:
		return fromStart(prefix), orOpen(kvstore.Prefix(prefix).End()), nil
	case (start != nil || last != nil) && single == nil && prefix == nil:
		if last != nil && bytes.Compare(start, last) >= 0 {
			return nil, nil, errors.New("the end is not after the start, so the range is empty")
		}
		return fromStart(start), orOpen(last), nil
	}
	return nil, nil, errSelection
}

// fromStart returns the first name of a range. There is no empty name.
func fromStart(start []byte) []byte {
	if len(start) == 0 {
		return []byte{0}
	}
	return start
}

// orOpen returns the end of a range in the form of package rights.
func orOpen(end []byte) []byte {
	if end == nil {
		return []byte{0}
	}
	return end
}

// appendNames appends the fields that describe a range.
func appendNames(doc []byte, r rights.Range) []byte {
	switch {
	case r.One:
		return reply.AppendBytes(doc, "key", r.Start)
	case r.End == nil && len(r.Start) == 1 && r.Start[0] == 0:
		return append(doc, `"prefix":""`...)
	case r.End != nil && bytes.Equal(kvstore.Prefix(r.Start).End(), r.End):
		return reply.AppendBytes(doc, "prefix", r.Start)
	}
	doc = reply.AppendBytes(doc, "start", r.Start)
	if r.End != nil {
		doc = reply.AppendBytes(append(doc, ','), "end", r.End)
	}
	return doc
}

var spaceNames = [...]string{rights.Keys: "keys", rights.Locks: "locks"}

func appendPermissions(doc []byte, permissions []rights.Permission) []byte {
	doc = append(doc, '[')
	for i, p := range permissions {
		if i > 0 {
			doc = append(doc, ',')
		}
		doc = append(append(doc, `{"access":"`...), p.Access.String()...)
		doc = append(append(doc, `","space":"`...), spaceNames[p.Space]...)
		doc = append(appendNames(append(doc, `",`...), p.Range()), '}')
	}
	return append(doc, ']')
}

func permissionsBytes(permissions []rights.Permission) (n int) {
	for _, p := range permissions {
		n += entryBytes + stretched*(len(p.Key)+len(p.RangeEnd))
	}
	return n
}
