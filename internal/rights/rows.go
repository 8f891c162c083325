package rights

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
)

// ErrRow is wrapped by errors about rows that Apply does not produce.
var ErrRow = errors.New("row of the rights is malformed")

// Load returns the tables that consist of these rows.
func Load(rows []Row) (*Tables, error) {
	t := New()
	for _, r := range rows {
		if err := t.add(r); err != nil {
			return nil, err
		}
		t.resize(r)
	}
	return t, nil
}

// CheckRow refuses a row that Apply does not produce. It is for rows from outside.
func CheckRow(r Row) error { return New().add(r) }

// add adds an entry as it is stored.
func (t *Tables) add(r Row) error {
	kind, name, _ := strings.Cut(r.Key, "/")
	switch {
	case r.Secret:
		return t.addKey(r)
	case r.Key == stateRow:
		return decode(r, &t.state, func() error { return nil })
	case kind == "u":
		u := new(User)
		t.users[name] = u
		return decode(r, u, func() error { return errors.Join(u.Validate(), sameName(name, u.Name)) })
	case kind == "r":
		role := new(Role)
		t.roles[name] = role
		return decode(r, role, func() error { return errors.Join(role.Validate(), sameName(name, role.Name)) })
	case kind == "t":
		token := &Token{used: new(atomic.Int64)}
		err := decode(r, token, func() error { return errors.Join(token.validate(), sameName(name, token.ID)) })
		t.tokens[name], t.bySum[token.Sum] = token, token
		return err
	}
	return fmt.Errorf("%w: unknown kind", ErrRow)
}

func sameName(key, name string) error {
	if key != name {
		return errors.New("it is stored under another name")
	}
	return nil
}

// decode refuses whatever would be encoded to other bytes: two replicas must not read
// one row differently.
func decode(r Row, into any, check func() error) error {
	if err := json.Unmarshal(r.Value, into); err != nil {
		return fmt.Errorf("%w: %w", ErrRow, err)
	}
	if !bytes.Equal(mustJSON(into), r.Value) {
		return fmt.Errorf("%w: it is not in its one form", ErrRow)
	}
	if err := check(); err != nil {
		return fmt.Errorf("%w: %w", ErrRow, err)
	}
	return nil
}

// EncodeChange returns the change for the log.
func EncodeChange(c *Change) []byte { return mustJSON(c) }

// DecodeChange returns what EncodeChange has encoded, and refuses anything else.
func DecodeChange(b []byte) (*Change, error) {
	c := new(Change)
	return c, decode(Row{Value: b}, c, func() error { return nil })
}
