package datadir

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"

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
	// StateStale: the cluster has refused it, because another copy of it has
	// been in use since.
	StateStale = "stale"
)

// Identity says whose directory it is. It is the content of member.json, next
// to a checksum.
type Identity struct {
	Format   int    `json:"format"`
	MemberID uint64 `json:"member_id"`
	Name     string `json:"name,omitempty"`
	// ClusterID is 0 until the directory has adopted a charter or has been given
	// to a member of an existing cluster. Adoption is final.
	ClusterID uint64 `json:"cluster_id,omitempty"`
	// Rendezvous is the id that the settings of the initial members yield. It
	// only helps them to find each other. It is 0 if it is not known.
	Rendezvous uint64 `json:"rendezvous_id,omitempty"`
	// Nonce is 128 random bits in hexadecimal. The cluster commits it as the
	// member's. A wiped directory gets another nonce, and is refused: the
	// member that owned it before may have voted.
	Nonce string `json:"nonce"`
	State string `json:"state"`
	// Starts counts the starts of a node with this directory. The cluster knows the
	// last one, and so notices an older copy of the directory, and a second one.
	Starts uint64 `json:"starts,omitempty"`
	// Original is the id that the cluster had before its first recovery. It is 0
	// if there was no recovery.
	Original uint64 `json:"original_cluster_id,omitempty"`
	// Engine is the name of the engine that keeps the state. It is empty until
	// the member has started.
	Engine string `json:"engine,omitempty"`
	// Seed names the state that the cluster begins with, if the directory was restored
	// from a backup; see SeedPath.
	Seed string `json:"seed,omitempty"`
	// Founding is what the directory promised and accepted while its cluster was
	// being founded. It is nil if the directory took no part in that.
	Founding *Founding `json:"founding,omitempty"`
}

// Founding is the state of an acceptor of Paxos, in which the initial members
// agree on the charter of their cluster. Package node runs the protocol.
type Founding struct {
	Promised Ballot   `json:"promised"`
	Accepted Ballot   `json:"accepted"` // the ballot of Charter
	Charter  *Charter `json:"charter,omitempty"`
}

// Ballot orders the attempts to found a cluster. No two founders use the same.
type Ballot struct {
	Round  uint64 `json:"round"`
	Member uint64 `json:"member"` // the founder
}

// Less reports whether b is before other.
func (b Ballot) Less(other Ballot) bool {
	return b.Round < other.Round || b.Round == other.Round && b.Member < other.Member
}

// Charter is what a cluster begins with. ClusterID is drawn together with the
// rest, so two clusters with the same id have the same charter.
type Charter struct {
	ClusterID uint64    `json:"cluster_id"`
	Members   []Founder `json:"members"` // by ascending id
	// Seed names the state that the cluster begins with. It is empty for a cluster
	// that begins with nothing.
	Seed string `json:"seed,omitempty"`
}

// Founder is an initial member.
type Founder struct {
	ID       uint64   `json:"id"`
	Name     string   `json:"name,omitempty"`
	PeerURLs []string `json:"peer_urls"`
	// Nonce is that of the directory that founds the cluster as this member. It
	// is empty for a member that did not take part in the founding.
	Nonce string `json:"nonce,omitempty"`
}

// Names reports whether the charter gives the member to the directory with this
// nonce.
func (c *Charter) Names(member uint64, nonce string) bool {
	return slices.ContainsFunc(c.Members, func(f Founder) bool { return f.ID == member && f.Nonce == nonce })
}

// NewClusterID returns 64 random bits, but never 0.
func NewClusterID() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return max(binary.BigEndian.Uint64(b[:]), 1)
}

const identityFormat = 1

// identityFile is the content of member.json.
type identityFile struct {
	Identity
	CRC32C uint32 `json:"crc32c"`
}

// checksum covers every field in its encoded form.
func (id Identity) checksum() uint32 {
	b, err := json.Marshal(id)
	if err != nil {
		panic(fmt.Sprintf("datadir: encode the identity: %v", err)) // plain data always encodes
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
// start in. It also refuses what an interrupted restore left. The identity is returned
// with the refusal.
func identify(dir string) (Identity, error) {
	id, err := readIdentity(dir)
	switch {
	case err != nil:
	case id == Identity{}:
		err = checkRestored(dir)
	case id.State == StateAdmitted && !hasLog(dir):
		err = refuse(walDir(dir), "member %d has taken part in its cluster, but its log is missing", id.MemberID)
	}
	return id, err
}

// checkOwned refuses a log without an identity. Its nonce is lost, so nobody
// would take this directory for that of its member.
func (id Identity) checkOwned(dir string) error {
	if id == (Identity{}) && hasLog(dir) {
		return refuse(identityPath(dir), "the identity of the member is missing, but there is a log")
	}
	return nil
}

// checkUsable refuses the directory of a member that was removed, and one that the
// cluster has refused for good. The id of a removed member cannot return: the others
// refuse its messages, and count no vote of it.
func (id Identity) checkUsable(dir string) error {
	switch id.State {
	case StateRemoved:
		return &RefusedError{
			File:   identityPath(dir),
			Reason: fmt.Sprintf("member %d was removed from its cluster, and its id cannot be used again", id.MemberID),
			Remedy: "add this machine under a new id and start it with an empty directory",
		}
	case StateStale:
		r := refuse(identityPath(dir), "the cluster has refused this directory as an older copy, or one of two copies: "+
			"entries that member %d has acknowledged may be missing here", id.MemberID)
		r.Remedy += ". If no other member is left, kvd recover takes this directory"
		return r
	}
	return nil
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
	case id.ClusterID == 0 && id.State != StateNew:
		return "a member that has taken part has no cluster id"
	case !slices.Contains([]string{StateNew, StateAdmitted, StateRemoved, StateStale}, id.State):
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
