package rights

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// MaxLoginKeyBytes is the limit of a key that signs logins.
const MaxLoginKeyBytes = 128

// loginKey is a key that signs the tokens of logins.
type loginKey struct {
	row string // see keyRow
	// secret is empty where only the hash is known: in a state that came out of a backup.
	secret []byte
}

// keyRow names a key by the revision that it came with, so that keys sort by age, and by
// its SHA-256, so that replicas can be compared, and bodies verified, without it. A secret
// of 256 random bits cannot be guessed from that.
func keyRow(revision uint64, secret []byte) string {
	return fmt.Sprintf("k/%016x/%x", revision, sha256.Sum256(secret))
}

var keyRowForm = regexp.MustCompile(`^k/[0-9a-f]{16}/[0-9a-f]{64}$`)

// Keys returns the keys that sign the tokens of logins, the newest first.
func (t *Tables) Keys() (out [][]byte) {
	for _, k := range t.keys {
		if len(k.secret) > 0 {
			out = append(out, k.secret)
		}
	}
	return out
}

// rotate puts a key before the newest one, and drops all but that one. What it changes does
// not depend on which secrets are known.
func (t *Tables) rotate(secret []byte) ([]Row, error) {
	if len(secret) > MaxLoginKeyBytes {
		return nil, fmt.Errorf("the key for logins has %d bytes, but the limit is %d", len(secret), MaxLoginKeyBytes)
	}
	put := loginKey{row: keyRow(t.state.Revision+1, secret), secret: secret}
	rows := append([]Row{{Key: put.row, Value: secret, Secret: true}}, goneKeys(t.keys[min(1, len(t.keys)):])...)
	t.keys = append([]loginKey{put}, t.keys[:min(1, len(t.keys))]...)
	return rows, nil
}

func goneKeys(keys []loginKey) (rows []Row) {
	for _, k := range keys {
		rows = append(rows, Row{Key: k.row, Secret: true})
	}
	return rows
}

// addKey adds a key as it is stored.
func (t *Tables) addKey(r Row) error {
	sum := sha256.Sum256(r.Value)
	switch {
	case !keyRowForm.MatchString(r.Key):
		return fmt.Errorf("%w: it is not named by a revision and a hash", ErrRow)
	case len(r.Value) > MaxLoginKeyBytes || len(r.Value) > 0 && !strings.HasSuffix(r.Key, hex.EncodeToString(sum[:])):
		return fmt.Errorf("%w: the secret is not the one that it is named by", ErrRow)
	}
	t.keys = append(t.keys, loginKey{r.Key, r.Value})
	slices.SortFunc(t.keys, func(a, b loginKey) int { return strings.Compare(b.row, a.row) })
	return nil
}

// Restored returns the tables with which a cluster begins that is made from a backup, and
// the rows that differ. It has no keys, so logins of the old cluster end. Its revision is
// raised above what clients of the old cluster have seen.
func (t *Tables) Restored(raise uint64) (*Tables, []Row) {
	after := t.clone()
	after.keys = nil
	after.state.Revision += raise
	state := Row{Key: stateRow, Value: mustJSON(&after.state)}
	after.resize(state)
	return after, append(goneKeys(t.keys), state)
}
