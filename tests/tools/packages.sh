#!/bin/sh
# What the integration tests need of the operating system: installed here where apt-get and root are at hand, named where not.
set -eu

# program:package, as Debian and Ubuntu name them
needed="systemctl:systemd journalctl:systemd systemd-analyze:systemd unshare:util-linux nsenter:util-linux mount:mount
mmdebstrap:mmdebstrap gcc:gcc
ip:iproute2 useradd:passwd pgrep:procps ps:procps git:git ssh:openssh-client nginx:nginx openssl:openssl
skopeo:skopeo docker-registry:docker-registry"

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
packages=
for pair in $needed; do
    command -v "${pair%%:*}" >/dev/null 2>&1 && continue
    case " $packages " in *" ${pair##*:} "*) ;; *) packages="$packages ${pair##*:}" ;; esac
done
[ -n "$packages" ] || exit 0

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
    printf '    installing with apt-get, for the integration tests:%s\n' "$packages"
    # The tests start these daemons themselves: a package's own service must not take its port, now or after the next boot.
    policy=/usr/sbin/policy-rc.d
    [ -e "$policy" ] || { trap 'rm -f "$policy"' EXIT; printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod 0755 "$policy"; }
    # shellcheck disable=SC2086  # words
    if { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends $packages; } >/dev/null; then
        for name in nginx docker-registry; do
            case " $packages " in *" $name "*) systemctl disable "$name.service" >/dev/null 2>&1 || : ;; esac
        done
        exit 0
    fi
fi
printf '\nERROR: the integration tests miss programs of these packages:%s\n' "$packages" >&2
printf '  expected: they are installed\n  do this:  as root: apt-get install --no-install-recommends%s\n' "$packages" >&2
exit 1
