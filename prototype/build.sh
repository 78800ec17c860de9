set -e
cd "$(dirname "$0")"
J=../ffcv_ops/jpeg
F="${F:--O3 -march=haswell}"
gcc -O3 -c $J/region.c -o region.o
gcc -O3 -c $J/scan.c -o scan.o
gcc $F $D -c ${SRC:-decode.c} -o decode.o
gcc $F $D -DNO_IDCT -DNO_COLOR -Dfast_open=coef_open -Dfast_begin=coef_begin -Dfast_rows=coef_rows -Dfast_codes=coef_codes -c ${SRC:-decode.c} -o coef.o
gcc -O2 bench.c region.o scan.o decode.o coef.o -ljpeg -lm -o bench${S}
