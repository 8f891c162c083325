package datadir

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/kvd-io/kvd/internal/limits"
)

// The states of a data directory.
const (
	// StateNew: the directory has a nonce, but no log yet.
	StateNew = "new"
	// StateAdmitted: it has a log, and its member may have voted and
	// acknowledged entries.
	StateAdmitted = "admitted"
	// StateRemoved: its member was removed from the cluster for good.
	StateRemoved = "removed"
)

// Identity says whose directory it is. It is the content of member.json, next
// to a checksum.
type Identity struct {
	Format    int    `json:"format"`
	MemberID  uint64 `json:"member_id"`
	Name      string `json:"name,omitempty"`
	ClusterID uint64 `json:"cluster_id"`
	// Nonce is 128 random bits in hexadecimal. The cluster commits it as the
	// member's. A wiped directory gets another nonce, and is refused: the
	// member that owned it before may have voted.
	Nonce string `json:"nonce"`
	State string `json:"state"`
	// Original is the id that the cluster had before its first recovery, and
	// that its settings still name. It is 0 if there was no recovery.
	Original uint64 `json:"original_cluster_id,omitempty"`
}

const identityFormat = 1

// identityFile is the content of member.json.
type identityFile struct {
	Identity
	CRC32C uint32 `json:"crc32c"`
}

// checksum covers every field. One that was added later enters only if it is
// set, so that the checksums of older files stay valid.
func (id Identity) checksum() uint32 {
	b := fmt.Appendf(nil, "%d %d %q %d %s %s", id.Format, id.MemberID, id.Name, id.ClusterID, id.Nonce, id.State)
	if id.Original != 0 {
		b = fmt.Appendf(b, " %d", id.Original)
	}
	return crc32.Checksum(b, castagnoli)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func identityPath(dir string) string { return filepath.Join(dir, "member.json") }

const nonceBytes = 16

// NewNonce returns 128 random bits in hexadecimal.
func NewNonce() string {
	var b [nonceBytes]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// identify reads whose directory it is, and refuses one whose member has taken
// part but has no log. Such a member may have voted in the term that it would
// start in. The identity is returned with the refusal.
func identify(dir string) (Identity, error) {
	id, err := readIdentity(dir)
	if err == nil && id.State == StateAdmitted && !hasLog(dir) {
		err = refuse(walDir(dir), "member %d has taken part in its cluster, but its log is missing", id.MemberID)
	}
	return id, err
}

// checkRemoved refuses the directory of a member that was removed. Its id cannot
// return: the others refuse its messages, and count no vote of it.
func (id Identity) checkRemoved(dir string) error {
	if id.State != StateRemoved {
		return nil
	}
	return &RefusedError{
		File:   identityPath(dir),
		Reason: fmt.Sprintf("member %d was removed from its cluster, and its id cannot be used again", id.MemberID),
		Remedy: "add this machine under a new id and start it with an empty directory",
	}
}

// readIdentity returns the zero Identity for a directory that is not claimed.
// A damaged member.json is a *RefusedError (D6).
func readIdentity(dir string) (Identity, error) {
	path := identityPath(dir)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return Identity{}, nil
	}
	if err != nil {
		return Identity{}, fmt.Errorf("read identity: %w", err)
	}
	var f identityFile
	if err := json.Unmarshal(b, &f); err != nil || f.CRC32C != f.checksum() {
		return Identity{}, refuse(path, "the identity of the data directory is damaged")
	}
	if f.Format != identityFormat {
		return Identity{}, fmt.Errorf("%s has format %d, but this binary supports only format %d: upgrade kvd", path, f.Format, identityFormat)
	}
	if problem := f.check(); problem != "" {
		return Identity{}, refuse(path, "%s", problem)
	}
	return f.Identity, nil
}

// check finds values that no kvd writes, whatever the checksum says.
func (id Identity) check() (problem string) {
	nonce, err := hex.DecodeString(id.Nonce)
	switch {
	case !limits.ValidMemberID(id.MemberID):
		return fmt.Sprintf("%d is not a valid member id", id.MemberID)
	case err != nil || len(nonce) != nonceBytes:
		return "the nonce is not 128 bits in hexadecimal"
	case id.State != StateNew && id.State != StateAdmitted && id.State != StateRemoved:
		return fmt.Sprintf("unknown state %q", id.State)
	}
	return ""
}

func (id Identity) write(dir string) error {
	b, err := json.MarshalIndent(identityFile{id, id.checksum()}, "", "  ")
	if err != nil {
		return err
	}
	if err := replaceFile(identityPath(dir), append(b, '\n')); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	return nil
}
