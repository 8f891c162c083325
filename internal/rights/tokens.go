package rights

import (
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

const (
	// sweepAfter is how long an expired token stays in the tables: so long it can be seen
	// that it has expired, and the clock of a member may be so fast that it deletes no valid
	// tokens.
	sweepAfter = 24 * time.Hour
	// sweepMost bounds how many tokens one change sweeps.
	sweepMost = 100
)

// putToken adds a token, and sweeps tokens that expired long before it was created: that is
// the only time of day in the tables, so every member sweeps the same ones. Tokens that
// nobody follows with new ones stay, which costs nothing.
func (t *Tables) putToken(token *Token) ([]Row, error) {
	if err := token.validate(); err != nil {
		return nil, err
	}
	if t.users[token.User] == nil {
		return nil, noSuch("user", token.User)
	}
	if t.tokens[token.ID] != nil || t.bySum[token.Sum] != nil {
		return nil, fmt.Errorf("token %q exists already", token.ID)
	}
	rows := t.sweep(token)
	if n := t.tokensOf(token.User); n >= MaxUserTokens {
		return nil, fmt.Errorf("user %q has %d tokens, which is the limit; revoke those that are not used, and give tokens a ttl: a day after they expire they no longer count", token.User, n)
	}
	put := *token
	put.used = new(atomic.Int64)
	t.tokens[put.ID], t.bySum[put.Sum] = &put, &put
	return append(rows, Row{Key: "t/" + put.ID, Value: mustJSON(&put)}), nil
}

func (t *Tables) tokensOf(user string) (n int) {
	for _, have := range t.tokens {
		if have.User == user {
			n++
		}
	}
	return n
}

// sweep removes expired tokens before one is added: first those of its user, which count
// against the same limit, then those that expired first.
func (t *Tables) sweep(added *Token) (rows []Row) {
	var dead []*Token
	for _, have := range t.tokens {
		if have.Expires != 0 && have.Expires < added.Created-sweepAfter.Milliseconds() {
			dead = append(dead, have)
		}
	}
	others := func(k *Token) int {
		if k.User == added.User {
			return 0
		}
		return 1
	}
	slices.SortFunc(dead, func(a, b *Token) int {
		return cmp.Or(cmp.Compare(others(a), others(b)), cmp.Compare(a.Expires, b.Expires), cmp.Compare(a.ID, b.ID))
	})
	for _, k := range dead[:min(len(dead), sweepMost)] {
		t.dropToken(k)
		rows = append(rows, Row{Key: "t/" + k.ID})
	}
	return rows
}

func (t *Tables) deleteToken(id string) ([]Row, error) {
	token := t.tokens[id]
	if token == nil {
		return nil, noSuch("token", id)
	}
	t.dropToken(token)
	return []Row{{Key: "t/" + id}}, nil
}

func (t *Tables) dropToken(token *Token) {
	delete(t.tokens, token.ID)
	delete(t.bySum, token.Sum)
}
