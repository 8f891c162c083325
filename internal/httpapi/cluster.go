package httpapi

import (
	"net/http"
	"strconv"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/memberurl"
)

// memberList is the answer of GET /v1/members.
type memberList struct {
	ClusterID string       `json:"cluster_id"`
	Members   []api.Member `json:"members"`
}

// memberURLs is the body of PUT /v1/members/{id}. A list that is not there
// keeps what the member has.
type memberURLs struct {
	PeerURLs   []string `json:"peer_urls"`
	ClientURLs []string `json:"client_urls"`
}

func checkMemberID(id uint64) error {
	if id == 0 || id > maxSafeInteger {
		return badRequest("a member's id is a number from 1 to %d", uint64(maxSafeInteger))
	}
	return nil
}

// memberID reads the id in the path.
func (x *exchange) memberID() (uint64, error) {
	id, err := strconv.ParseUint(x.arg, 10, 64)
	if err != nil {
		return 0, badRequest("the path has %.40q where a member's id belongs, a decimal number", x.arg)
	}
	return id, checkMemberID(id)
}

// normalizeURLs refuses what cannot be the URLs of a member, and brings the
// others into the form that the membership keeps.
func normalizeURLs(where string, urls *[]string) error {
	if len(*urls) == 0 {
		return nil
	}
	normal, err := memberurl.Normalize(*urls)
	if err != nil {
		return badRequest("%s: %v (for example, http://10.0.0.4:12379)", where, err)
	}
	*urls = normal
	return nil
}

func (s *Server) listMembers(x *exchange) error {
	ctx, cancel, err := x.context()
	if err != nil {
		return err
	}
	defer cancel()
	members, err := s.opts.Members.Members(ctx)
	if err != nil {
		return err
	}
	return x.writeJSON(http.StatusOK, memberList{s.opts.Health.ClusterID(), members})
}

// addMember answers POST /v1/members.
func (s *Server) addMember(x *exchange) error {
	var m api.NewMember
	if err := x.readDocument(&m); err != nil {
		return err
	}
	if err := checkNewMember(&m); err != nil {
		return err
	}
	ctx, cancel, err := x.context()
	if err != nil {
		return err
	}
	defer cancel()
	added, err := s.opts.Members.AddMember(ctx, m)
	if err != nil {
		return err
	}
	x.set("Location", "/v1/members/"+strconv.FormatUint(added.ID, 10))
	return x.writeJSON(http.StatusCreated, added)
}

func checkNewMember(m *api.NewMember) error {
	if m.ID != 0 {
		if err := checkMemberID(m.ID); err != nil {
			return err
		}
	}
	if len(m.PeerURLs) == 0 {
		return badRequest("the field \"peer_urls\" must name at least one URL at which the members reach the new one")
	}
	if err := normalizeURLs("the field \"peer_urls\"", &m.PeerURLs); err != nil {
		return err
	}
	return normalizeURLs("the field \"client_urls\"", &m.ClientURLs)
}

// updateMember answers PUT /v1/members/{id}.
func (s *Server) updateMember(x *exchange) error {
	id, err := x.memberID()
	if err != nil {
		return err
	}
	var urls memberURLs
	if err := x.readDocument(&urls); err != nil {
		return err
	}
	if err := checkUpdate(&urls); err != nil {
		return err
	}
	ctx, cancel, err := x.context()
	if err != nil {
		return err
	}
	defer cancel()
	m, err := s.opts.Members.UpdateMember(ctx, id, urls.PeerURLs, urls.ClientURLs)
	if err != nil {
		return err
	}
	return x.writeJSON(http.StatusOK, m)
}

func checkUpdate(urls *memberURLs) error {
	if urls.PeerURLs == nil && urls.ClientURLs == nil {
		return badRequest("the body must have \"peer_urls\", \"client_urls\" or both")
	}
	if urls.PeerURLs != nil && len(urls.PeerURLs) == 0 {
		return badRequest("the field \"peer_urls\" must name at least one URL")
	}
	if err := normalizeURLs("the field \"peer_urls\"", &urls.PeerURLs); err != nil {
		return err
	}
	return normalizeURLs("the field \"client_urls\"", &urls.ClientURLs)
}

// removeMember answers DELETE /v1/members/{id}.
func (s *Server) removeMember(x *exchange) error {
	id, err := x.memberID()
	if err != nil {
		return err
	}
	return x.remove(id)
}

func (x *exchange) remove(id uint64) error {
	ctx, cancel, err := x.context()
	if err != nil {
		return err
	}
	defer cancel()
	if err := x.srv.opts.Members.RemoveMember(ctx, id); err != nil {
		return err
	}
	x.WriteHeader(http.StatusNoContent)
	return nil
}

// promoteMember answers POST /v1/members/{id}/promote.
func (s *Server) promoteMember(x *exchange) error {
	id, err := x.memberID()
	if err != nil {
		return err
	}
	ctx, cancel, err := x.context()
	if err != nil {
		return err
	}
	defer cancel()
	m, err := s.opts.Members.PromoteMember(ctx, id)
	if err != nil {
		return err
	}
	return x.writeJSON(http.StatusOK, m)
}

func (s *Server) getLeader(x *exchange) error {
	leader, err := s.opts.Leadership.Leader()
	if err != nil {
		return err
	}
	return x.writeJSON(http.StatusOK, leader)
}

// transferLeader answers POST /v1/leader?to=ID.
func (s *Server) transferLeader(x *exchange) error {
	to, ok, err := x.query.number("to", 1)
	if err != nil {
		return err
	}
	if !ok {
		return badRequest("the parameter \"to\" must name the member that shall lead")
	}
	ctx, cancel, err := x.context()
	if err != nil {
		return err
	}
	defer cancel()
	if err := s.opts.Leadership.TransferLeader(ctx, to); err != nil {
		return err
	}
	x.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) getStatus(x *exchange) error {
	ctx, cancel, err := x.context()
	if err != nil {
		return err
	}
	defer cancel()
	st, err := s.opts.Inspector.Status(ctx)
	if err != nil {
		return err
	}
	return x.writeJSON(http.StatusOK, st)
}

func (s *Server) getCluster(x *exchange) error {
	ctx, cancel, err := x.context()
	if err != nil {
		return err
	}
	defer cancel()
	st, err := s.opts.Inspector.ClusterStatus(ctx)
	if err != nil {
		return err
	}
	return x.writeJSON(http.StatusOK, st)
}
