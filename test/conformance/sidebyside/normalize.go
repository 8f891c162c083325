package sidebyside

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
)

// replacements make equal what differs from run to run, or from one server to another by
// its nature: ids, addresses, times, sizes, positions in the log, hashes.
var replacements = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "ADDRESS"},
	{regexp.MustCompile(`"(cluster_id|member_id|raft_term|raftTerm|raftIndex|raftAppliedIndex|raft_index|dbSize|dbSizeInUse|dbSizeQuota|db_size|hash|leader|size|total_size|totalSize)":"?-?\d+"?`), `"$1":N`},
	{regexp.MustCompile(`"(ClusterID|MemberID|RaftTerm|RaftIndex|RaftAppliedIndex|DBSize|DBSizeInUse|DBSizeQuota|Leader|Hash)" : \d+`), `"$1" : N`},
	{regexp.MustCompile(`"ID" : \d+`), `"ID" : N`},
	{regexp.MustCompile(`(cluster_id|member_id|raft_term|raft_index|raft_applied_index|db_size|db_size_in_use|db_size_quota|leader):\d+`), "$1:N"},
	// The id of a member, and of a lease that the server chose, in the forms of etcdctl.
	{regexp.MustCompile(`(?m)^[0-9a-f]+, (started|unstarted)`), "MEMBER, $1"},
	{regexp.MustCompile(`(Member +)[0-9a-f]+( (?:added|removed|updated|promoted))`), "Member MEMBER$2"},
	{regexp.MustCompile(`cluster +[0-9a-f]{8,16}`), "cluster CLUSTER"},
	{regexp.MustCompile(`lease [0-9a-f]{16}`), "lease LEASE"},
	{regexp.MustCompile(`\b[0-9a-f]{16}\b`), "ID"},
	{regexp.MustCompile(`remaining\(\d+s\)`), "remaining(N)"},
	{regexp.MustCompile(`took = [^"\s]+`), "took = TIME"},
	{regexp.MustCompile(`"(ts|target|peer)":"[^"]*"`), `"$1":"…"`},

	// endpoint status and hashkv: ids, sizes, and positions.
	{regexp.MustCompile(`(?m)^((?:http://)?ADDRESS), [0-9a-fID]+, (\d+\.\d+\.\d+, \d+\.\d+\.\d+), [^,]+, [^,]+, [^,]+, [^,]+, (true|false), (true|false), \d+, \d+, \d+`), "$1, MEMBER, $2, SIZES, $3, $4, TERM, INDEX, APPLIED"},
	{regexp.MustCompile(`(?m)^ADDRESS, \d+$`), "ADDRESS, HASH"},
	{regexp.MustCompile(`(?m)^ADDRESS, \d+, (-?\d+)$`), "ADDRESS, HASH, $1"},
	{regexp.MustCompile(`"ID":"?\d+"?,"name"`), `"ID":N,"name"`},
	// Leases in the JSON of etcdctl. The gateway puts numbers in quotes.
	{regexp.MustCompile(`"(ID|id|lease)":\d+`), `"$1":N`},
	{regexp.MustCompile(`"took":"[^"]*"`), `"took":"…"`},
	{regexp.MustCompile(`took [0-9.]+[mµ]?s`), "took TIME"},
	{regexp.MustCompile(`(?m)^│ [0-9a-fID]+ │ started`), "│ MEMBER │ started"},
	{regexp.MustCompile(`─+`), "─"},
}

// extra is what kvd's gateway adds to errors for clients of older gateways, on purpose.
var extra = []*regexp.Regexp{
	regexp.MustCompile(`,"grpc_code":\d+,"http_code":\d+`),
	regexp.MustCompile(`("message":"(?:[^"\\]|\\.)*"),"error":"(?:[^"\\]|\\.)*"`),
}

// normalize makes an answer comparable.
func normalize(answer string) string {
	var lines []string
	for line := range strings.Lines(strings.ReplaceAll(answer, "\u00a0", " ")) {
		lines = append(lines, compact(strings.TrimSuffix(line, "\n")))
	}
	out := strings.Join(lines, "\n")
	if out != "" {
		out += "\n"
	}
	for _, r := range replacements {
		out = r.pattern.ReplaceAllString(out, r.with)
	}
	out = extra[0].ReplaceAllString(out, "")
	return extra[1].ReplaceAllString(out, "$1")
}

// compact takes the spaces out of JSON: protojson puts some in or not, depending on the
// binary.
func compact(line string) string {
	status, text, _ := strings.Cut(line, " ")
	if strings.HasPrefix(line, "{") {
		status, text = "", line
	} else {
		status += " "
	}
	var out bytes.Buffer
	if !strings.HasPrefix(text, "{") || json.Compact(&out, []byte(text)) != nil {
		return line
	}
	return status + out.String()
}
