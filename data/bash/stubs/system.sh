# What the monitoring stubs share. A setup changes the made-up machine with these files, one entry a line:
#     $ANSWERS/.processes     USER PID PPID %CPU %MEM VSZ RSS STAT ELAPSED_SECONDS COMMAND ARGUMENTS...
#     $ANSWERS/.filesystems   DEVICE TYPE KBLOCKS KUSED MOUNT [INODES INODES_USED]
#     $ANSWERS/.memory        one line, KiB: TOTAL USED CACHED SWAP_TOTAL SWAP_USED
#     $ANSWERS/.load          one line: LOAD1 LOAD5 LOAD15
#     $ANSWERS/.cpu           one line, percent: USER SYSTEM IDLE IOWAIT
#     $ANSWERS/.journal       YYYY-MM-DDTHH:MM:SS UNIT PRIORITY(0-7) MESSAGE...
#     $ANSWERS/.killed        names that pkill and killall have ended (written by them)

processes() {
    if [[ -f $ANSWERS/.processes ]]; then cat "$ANSWERS/.processes"; else cat << 'END'
root 1 0 0.0 0.1 168140 11264 Ss 266400 systemd /sbin/init
root 2 0 0.0 0.0 0 0 S 266400 kthreadd [kthreadd]
root 412 1 0.0 0.2 64580 17408 Ss 266390 systemd-journal /lib/systemd/systemd-journald
root 701 1 0.0 0.1 15432 9216 Ss 266380 sshd sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups
root 715 1 0.0 0.0 9492 2816 Ss 266380 cron /usr/sbin/cron -f
root 802 1 0.0 0.1 55200 8192 Ss 266380 nginx nginx: master process /usr/sbin/nginx -g daemon on; master_process on;
www-data 803 802 1.2 0.3 55800 24576 S 266380 nginx nginx: worker process
www-data 804 802 0.9 0.3 55800 24064 S 266380 nginx nginx: worker process
postgres 903 1 2.4 4.1 1265000 335872 Ss 266370 postgres /usr/lib/postgresql/15/bin/postgres -D /var/lib/postgresql/15/main
postgres 911 903 0.3 1.2 1265200 98304 Ss 266370 postgres postgres: checkpointer
redis 1013 1 0.8 0.9 68000 73728 Ssl 266370 redis-server /usr/bin/redis-server 127.0.0.1:6379
app 1120 1 12.5 6.8 2890000 557056 Sl 86400 java java -Xmx512m -jar /opt/app/app.jar
app 1204 1 7.1 3.3 985000 270336 Sl 43200 node node /srv/app/server.js
app 1310 1 3.0 2.0 310000 163840 S 7200 python3 python3 /opt/app/worker.py
alice 2001 701 0.0 0.1 10240 5120 Ss 3600 bash -bash
END
    fi | if [[ -s $ANSWERS/.killed ]]; then
        awk 'NR == FNR { gone[$1]; next } !($10 in gone) && !($2 in gone)' "$ANSWERS/.killed" -
    else
        cat
    fi
}

filesystems() {
    if [[ -f $ANSWERS/.filesystems ]]; then cat "$ANSWERS/.filesystems"; else cat << 'END'
/dev/sda1 ext4 41151808 17283764 / 2621440 262144
tmpfs tmpfs 4096000 1024 /run 1024000 812
/dev/sda2 ext4 102626232 61575740 /home 6553600 458752
/dev/sdb1 xfs 209612800 92229632 /data 104857600 1048576
END
    fi
}

memory() { if [[ -f $ANSWERS/.memory ]]; then cat "$ANSWERS/.memory"; else echo "8167848 3184920 2654208 2097148 131072"; fi; }
load() { if [[ -f $ANSWERS/.load ]]; then cat "$ANSWERS/.load"; else echo "0.42 0.36 0.30"; fi; }
cpu() { if [[ -f $ANSWERS/.cpu ]]; then cat "$ANSWERS/.cpu"; else echo "8 3 88 1"; fi; }

# Prints the journal; made-up times lie in the last two hours, so that --since "1 hour ago" finds something.
journal() {
    local back unit priority message
    if [[ -f $ANSWERS/.journal ]]; then
        cat "$ANSWERS/.journal"
    else
        while read -r back unit priority message; do
            echo "$(date -d "-$back minutes" +%FT%H:%M:00) $unit $priority $message"
        done << 'END'
110 systemd 6 Started Daily apt upgrade and clean activities.
95 nginx 6 signal process started
61 sshd 6 Accepted publickey for alice from 203.0.113.5 port 50112 ssh2
44 sshd 4 Failed password for invalid user admin from 198.51.100.23 port 40022 ssh2
31 cron 6 (root) CMD (/usr/local/bin/nightly.sh)
20 nginx 3 connect() failed (111: Connection refused) while connecting to upstream
12 postgres 3 could not write to file: No space left on device
5 kernel 4 Out of memory: Killed process 1120 (java)
2 systemd 6 Started Session 42 of user alice.
END
    fi
}
